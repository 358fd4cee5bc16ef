# The least that runs: a wallet and a network. The processor computes, nothing is open.
{
  services.fabstir-node = {
    enable = true;
    wallet.keystoreFile = "/run/agenix/keystore";
    wallet.passwordFile = "/run/agenix/password";
    deploymentFile = "/etc/fabstir/deployment.json";
    settings.chain.chain_id = 8453;
    settings.chain.rpc_urls = [ "https://rpc.example.org" ];
  };
}
