# Which GPUs the node computes on, and NVIDIA's driver for them.
{
  config,
  lib,
  ...
}:
let
  inherit (lib) mkDefault mkIf mkOption types;
  name = "services.fabstir-node";
  cfg = config.services.fabstir-node;
  gpu = cfg.gpu;
  isUsed = gpu.devices != "none";
  isChosen = builtins.isList gpu.devices;
  nvidia = config.hardware.nvidia;
in
{
  options.services.fabstir-node.gpu = {
    devices = mkOption {
      type = types.either (types.enum [
        "none"
        "all"
      ]) (types.listOf (types.strMatching "[A-Za-z0-9,-]{1,200}"));
      default = "none";
      description = ''
        `"none"`: the processor computes, and no device of the machine is visible to the service.
        `"all"`: every healthy GPU is used; the node deals them out when it starts. A list: one
        replica of the model for each item, which is what CUDA_VISIBLE_DEVICES takes: an index, a
        UUID, or several with commas to split the model over.
      '';
      example = [
        "0"
        "1,2"
      ];
    };
    manageDriver = mkOption {
      type = types.bool;
      default = true;
      description = ''
        Turn NVIDIA's driver on: open kernel modules, the persistence daemon, graphics libraries.
        The kernel module comes from `boot.kernelPackages`, the libraries from the same package, so
        the two always fit. Its licence must be allowed where nixpkgs is imported:
        `config.allowUnfreePredicate`.
      '';
      example = false;
    };
  };

  config = mkIf (cfg.enable && isUsed) {
    hardware.graphics.enable = mkIf gpu.manageDriver (mkDefault true);
    # Turns the driver on, not X. The data centre's driver is instead of it.
    services.xserver.videoDrivers = mkIf (gpu.manageDriver && !nvidia.datacenter.enable) (
      mkDefault [ "nvidia" ]
    );
    hardware.nvidia = mkIf gpu.manageDriver {
      open = mkDefault true;
      nvidiaPersistenced = mkDefault true;
      nvidiaSettings = mkDefault false;
    };

    services.fabstir-node.settings.inference = mkIf (isChosen && gpu.devices != [ ]) {
      devices = mkDefault gpu.devices;
      replicas = mkDefault (lib.length gpu.devices);
    };
    systemd.services.fabstir-node.after = [ "nvidia-persistenced.service" ];

    assertions = [
      {
        assertion = gpu.devices != [ ];
        message = "${name}.gpu.devices: the list is empty; name a GPU, or set \"all\" or \"none\"";
      }
      {
        assertion =
          lib.elem "nvidia" config.services.xserver.videoDrivers || nvidia.datacenter.enable;
        message = "${name}.gpu.devices: GPUs are wanted, but NVIDIA's driver is off; leave ${name}.gpu.manageDriver on, or set services.xserver.videoDrivers = [ \"nvidia\" ]";
      }
      {
        assertion = config.hardware.graphics.enable;
        message = "${name}.gpu.devices: hardware.graphics.enable is off, so libcuda.so is nowhere to be found; turn it on";
      }
      {
        assertion = cfg.package.withCuda or true;
        message = "${name}.package was built without CUDA, but ${name}.gpu.devices wants GPUs; set packages.x86_64-linux.node-cuda of the flake, or node-cuda-ezkl with proofs";
      }
    ];
  };
}
