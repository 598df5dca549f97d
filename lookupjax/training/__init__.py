"""One sharded loop for every task: state, optimizer, sharding, checkpoints, the step."""
