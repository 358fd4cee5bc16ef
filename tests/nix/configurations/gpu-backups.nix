# Two replicas of the model on three GPUs, backups into a directory on another disk.
{
  services.fabstir-node = {
    enable = true;
    wallet.keystoreFile = "/run/agenix/keystore";
    wallet.passwordFile = "/run/agenix/password";
    deploymentFile = "/etc/fabstir/deployment.json";
    settings.chain.chain_id = 8453;
    openFirewall = true;
    gpu.devices = [
      "0"
      "1,2"
    ];
    backups = {
      enable = true;
      repository = "/mnt/backup/node";
      passwordFile = "/run/agenix/restic-password";
      environmentFile = "/run/agenix/restic-environment";
      recoveryPasswordFile = "/run/agenix/recovery-password";
      intervalSeconds = 900;
      keep.weekly = 52;
    };
  };
}
