# Sizes of the disk's parts, MiB, by profile. A released profile never changes: a node has the
# slots that it was flashed with, and what does not fit both of them cannot be its update.
{
  # With CUDA's libraries.
  cuda = {
    esp = 1024;
    verity = 128;
    store = 12288;
    config = 64;
    state = 16384;
  };
  # Without a GPU, and the test image.
  small = {
    esp = 512;
    verity = 32;
    store = 2048;
    config = 64;
    state = 1024;
  };
}
