"""Jobs on a cluster: what is frozen and queued, the talk with Slurm, how a job ends. No torch here."""
