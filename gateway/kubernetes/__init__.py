"""The cluster, as an agent of one node has it; and what the agent says there."""
