"""The wire models, one file per resource: what requests may hold and what responses do hold."""
