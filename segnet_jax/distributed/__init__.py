"""Several devices and hosts: data parallelism, rendezvous, watchdog, cluster environments."""
