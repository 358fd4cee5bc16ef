# Examples for the settings whose default is empty and so shows nothing. By section and key.
{
  node = {
    state_dir = "/var/lib/fabstir";
    run_dir = "/run/fabstir";
    cache_dir = "/var/cache/fabstir";
    chain = "base";
  };
  chain = {
    rpc_urls = [
      "https://rpc.example.org"
      "wss://rpc.example.org"
    ];
    chain_id = 8453;
    deployment_file = "/etc/fabstir/deployment.json";
    keystore_file = "credential:keystore";
    password_file = "credential:password";
    signer_url = "https://signer.example.org:9000";
    signer_address = "0x587564AC94BB2f088F08fE4A926040F3f0BD2F03";
    payout_address = "0x587564AC94BB2f088F08fE4A926040F3f0BD2F03";
    confirmations_by_amount = [
      [
        1000000
        3
      ]
      [
        100000000
        12
      ]
    ];
    native_coin_price = 3000000000;
    max_payout_per_day = 1000000000000000000;
    listing_api_url = "https://gpu.example.org:8080";
    listing_models = [ "bartowski/SmolLM2-135M-Instruct-GGUF/SmolLM2-135M-Instruct-Q4_1.gguf" ];
    listing_prices = [
      "* 2.00 usd"
      "* 0.0008 native"
    ];
    listing_location = "Berlin";
    listing_libp2p = [ "/ip4/203.0.113.7/tcp/9000/p2p/12D3KooWQYhTNQdmr3ArTeUHRYzFg94BKyTkoWBDWez9kSCVe2Xo" ];
    listing_gpu = "RTX 4090";
    listing_vram_gib = 24;
    listing_max_concurrent = 4;
  };
  inference = {
    devices = [
      "0"
      "1"
    ];
    model = "smollm2";
    model_path = "/var/cache/fabstir/models/model.gguf";
    model_sha256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    store_dir = "/var/cache/fabstir/models";
    store_bytes = 200000000000;
    hub_url = "https://hub.example.org";
    kv_tokens = 32768;
    threads = 8;
    public_prefixes = [ "/etc/fabstir/system-prompt.txt" ];
    embedding_model_path = "/var/cache/fabstir/models/embedding.gguf";
    embedding_model_sha256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
  };
  prover = {
    profile_dir = "/var/cache/fabstir/proofs";
    threads = 4;
  };
  s5.data_dir = "/var/lib/fabstir/s5";
  p2p = {
    listen = "/ip4/0.0.0.0/tcp/9000";
    announce = [ "/ip4/203.0.113.7/tcp/9000" ];
    bootstrap = [ "/ip4/198.51.100.4/tcp/9000/p2p/12D3KooWQYhTNQdmr3ArTeUHRYzFg94BKyTkoWBDWez9kSCVe2Xo" ];
  };
  updater = {
    snapshot_dir = "/var/lib/fabstir/snapshots";
    restic_repository = "sftp:me@nas:/node";
    restic_password_file = "credential:restic-password";
    restic_environment_file = "credential:restic-environment";
    recovery_password_file = "credential:recovery-password";
    repository_url = "https://releases.example.org/fabstir";
    trusted_root_file = "/etc/fabstir/trusted-root.json";
    releases_dir = "/var/lib/fabstir/releases";
    backend = "nixos";
  };
}
