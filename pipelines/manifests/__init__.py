"""KubeRay's manifests, made from a configuration: `python pipeline.py manifests`."""
