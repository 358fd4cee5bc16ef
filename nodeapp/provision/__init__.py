"""What a machine is told by its CONFIG partition: checked, taken over as a whole, put to use."""
