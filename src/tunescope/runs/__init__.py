"""Run folders, the records that cross packages, and the ledger."""
