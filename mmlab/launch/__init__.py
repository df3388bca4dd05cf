"""What stands between a run and the cluster that it runs on."""
