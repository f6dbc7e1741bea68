"""The light client: trainers, local optimisation, transport and the agent that ties them. Runs without torch."""
