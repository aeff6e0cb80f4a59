"""What the verbs do: one file a verb, each `run(recipe, folder) -> Outcome`."""
