"""Learning the displacements: the network, its losses, and how results are measured."""
