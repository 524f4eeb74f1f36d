"""How fast are models beside each other, on the machine at hand?"""
