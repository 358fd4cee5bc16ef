"""The steps of set-up, one file a part; each can tell whether it is done and do it."""
