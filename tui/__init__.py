"""The live view of a run. Nothing is here yet: it is planned, see the changelog for what there is."""
