"""What dhara does on this machine, row by row of the bars that it must reach: `make bench`."""
