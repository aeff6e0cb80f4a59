"""Callbacks for trainers of other libraries."""
