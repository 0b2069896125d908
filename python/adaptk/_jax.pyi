handlers: dict[str, object]
