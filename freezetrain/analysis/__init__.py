"""Find regions, and see what they do: the verbs from score to verify."""
