"""Plain functions over per-sample records: shares, their intervals, and limits stated over them."""
