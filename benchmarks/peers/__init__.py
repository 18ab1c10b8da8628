"""What serving costs: this service beside four others, all behind the same model, questions and client."""
