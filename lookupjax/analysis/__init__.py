"""Looking at models: parameters and multiply-accumulates, throughput, attention, pictures, reports."""
