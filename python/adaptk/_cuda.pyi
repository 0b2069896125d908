toolkit: str
architectures: str
backend: object
