"""What tests share: small models, tiny runs, hostile inputs."""
