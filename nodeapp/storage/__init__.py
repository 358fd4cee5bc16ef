"""The s5 process: the embedded portal under the service shell."""
