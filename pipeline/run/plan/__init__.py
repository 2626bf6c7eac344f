"""What a run would do, take and stumble over, before it begins: looks, and short samples; nothing is written."""
