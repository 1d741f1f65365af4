"""The ground: errors, files, locks, signals, downloads, the console. Imports nothing of the package."""
