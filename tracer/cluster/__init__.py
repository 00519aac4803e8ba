"""The Kubernetes API: what of the cluster lies beyond this node. Never needed, only better.

The only user of the `kubernetes` client, of which it takes what is hard (kubeconfig, in-cluster
credentials, exec plugins, tokens that expire, TLS); objects are read by `parse`, for fifty
thousand of the client's own would not fit. `deploy/clusterrole.yaml` has the rights it needs.
"""
