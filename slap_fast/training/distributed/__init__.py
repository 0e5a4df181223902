"""Ranks: environment, rendezvous, heartbeat, launcher, process group. Begin with `process_group.init_distributed`."""
