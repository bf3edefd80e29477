"""One module per row of the table; each has SIDES, OURS and PEERS."""
