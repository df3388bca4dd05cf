"""Jobs on a cluster: what a submission freezes, the batch script, and the talk with Slurm. No torch here."""
