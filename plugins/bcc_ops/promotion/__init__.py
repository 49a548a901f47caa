"""From an evaluated challenger to the model in use: gate, versions, pointer, smoke test, model card."""
