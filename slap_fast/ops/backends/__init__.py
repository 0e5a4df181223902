"""What serves an op, one file per op and way of serving; chosen by `slap_fast.ops.dispatch`."""
