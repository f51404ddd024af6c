"""The schemes of DPM-Solver: `multistep` and `singlestep`."""
