"""Looking at models from outside: counts of parameters and products, speed, attention maps, plots."""
