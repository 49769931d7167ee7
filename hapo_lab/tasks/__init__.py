"""Problems, the built-in tasks, verifiers, and tasks from files."""
