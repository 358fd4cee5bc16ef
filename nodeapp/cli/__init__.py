"""`fabstir-node …`: one file a noun; heavy imports inside the commands, so that --help is quick."""
