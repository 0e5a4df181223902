"""Sampling: assigns clips to steps and ranks, as a pure function of seed and step.

Begin with global_batch_sampler.py. mixture.py joins several datasets; epoch_stream.py shuffles one dataset;
duration_filter.py drops long clips; rank_split.py balances the audio of a batch over the ranks.
"""
