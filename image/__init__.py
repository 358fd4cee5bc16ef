"""What the flashable image is made of."""
