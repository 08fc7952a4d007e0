"What the studies need and a user of the callback does not: runs, methods, the store, sweeps, scales, tables and the benchmark"
