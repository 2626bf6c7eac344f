"""The commands of the group "set up", so that no folder holds too many."""
