"""What every controller stands on: watch caches, the keyed queue, gather -> plan -> apply, conditions, Events."""
