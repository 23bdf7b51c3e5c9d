"""What an instance and a panel exchange: registration tokens and messages, as structs; neither side's rules."""
