"""What is deployed: Serve entry points, model catalogs, and the files of the demo."""
