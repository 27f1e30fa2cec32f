"""How fast macft is on this machine, and why: counters, times, and the limit they are held against."""
