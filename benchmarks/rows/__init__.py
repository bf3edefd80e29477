"""One module per row of the table; each has TITLE, SIDES, OURS, PEERS, TARGET, and if it likes BESIDE: other sides -> the ratio wanted."""
