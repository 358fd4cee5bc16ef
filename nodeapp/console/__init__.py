"""What the operator of a machine sees on its screen."""
